// Draws an image with its objects as an SVG: labels beside them, class and score where the pointer is, and what is
// clicked goes back to the page. All text is set as text, never as HTML.
const SVG = "http://www.w3.org/2000/svg";

export default function (component) {
  const { data, parentElement, setTriggerValue } = component;
  const root = parentElement.querySelector(".overlay");
  root.replaceChildren();
  // So that all of it fits on the screen.
  root.style.maxWidth = `min(100%, ${((72 * data.width) / data.height).toFixed(2)}vh)`;

  const svg = add(root, "svg", { viewBox: `0 0 ${data.width} ${data.height}`, role: "img", "aria-label": data.title });
  add(svg, "image", { href: data.image, width: data.width, height: data.height, preserveAspectRatio: "none" });
  const tip = document.createElement("div");
  tip.className = "tip";

  const groups = new Map();
  // Large objects first: small ones lie above them, and can be pointed at.
  const area = (one) => (one.box[2] - one.box[0]) * (one.box[3] - one.box[1]);
  for (const one of [...data.objects].sort((a, b) => area(b) - area(a))) {
    const group = add(svg, "g", { class: "object", "data-object": one.id, "aria-label": text(one) });
    groups.set(one.id, group);
    if (one.id === data.chosen) group.classList.add("chosen");
    const [x0, y0, x1, y1] = one.box;
    if (one.mask) add(group, "path", { class: "mask", d: one.mask, fill: one.color, stroke: one.color });
    if (data.boxes || !one.mask) {
      // Without a drawn box there is still one to point at.
      const stroke = data.boxes ? one.color : "none";
      const kind = one.mask ? "box" : "box bare";
      add(group, "rect", { class: kind, x: x0, y: y0, width: x1 - x0, height: y1 - y0, stroke });
    }
    if (one.points) drawKeypoints(group, one);
    group.addEventListener("pointermove", (event) => showTip(event, one));
    group.addEventListener("pointerleave", () => (tip.style.display = "none"));
    group.addEventListener("click", () => setTriggerValue("chosen", one.id));
  }

  if (data.labels) {
    const labels = [...data.objects].sort((a, b) => b.score - a.score).map(addLabel);
    const observer = new ResizeObserver(() => placeLabels(labels));
    observer.observe(root);
    root.append(tip);
    placeLabels(labels);
    return () => observer.disconnect();
  }
  root.append(tip);

  function add(parent, name, attributes) {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    parent.append(element);
    return element;
  }

  function text(one) {
    return `${one.label} ${one.score.toFixed(2)}`;
  }

  function drawKeypoints(group, one) {
    const side = Math.sqrt(Math.max(1, area(one)));
    const radius = Math.max(data.width / 400, Math.min(data.width / 160, side / 28));
    for (const [a, b] of one.lines) {
      const [p, q] = [one.points[a], one.points[b]];
      if (p && q) add(group, "line", { class: "line", x1: p[0], y1: p[1], x2: q[0], y2: q[1], stroke: one.color });
    }
    for (const point of one.points) {
      if (!point) continue;
      const fill = point[3].startsWith("left") ? "#5adcff" : point[3].startsWith("right") ? "#ffbe46" : "#fff";
      const dot = add(group, "circle", { class: "point", cx: point[0], cy: point[1], r: radius, fill });
      dot.addEventListener("pointermove", (event) => {
        event.stopPropagation();
        showTip(event, one, `${point[3].replaceAll("_", " ")} ${point[2].toFixed(2)}`);
      });
    }
  }

  function showTip(event, one, more = one.detail) {
    const title = document.createElement("b");
    title.textContent = text(one);
    const detail = document.createElement("span");
    detail.textContent = more;
    tip.replaceChildren(title, detail);
    tip.style.display = "block";
    const place = root.getBoundingClientRect();
    const x = event.clientX - place.left + 14;
    const y = event.clientY - place.top + 14;
    tip.style.left = `${Math.max(0, Math.min(x, place.width - tip.offsetWidth - 4))}px`;
    tip.style.top = `${Math.max(0, Math.min(y, place.height - tip.offsetHeight - 4))}px`;
  }

  function addLabel(one) {
    const label = document.createElement("div");
    label.className = "label";
    label.textContent = text(one);
    label.style.background = one.color;
    const [red, green, blue] = one.color.match(/\d+/g).map(Number);
    label.style.color = 0.21 * red + 0.72 * green + 0.07 * blue > 115 ? "#000" : "#fff";
    root.append(label);
    return { one, label };
  }

  // The best first: above its box, else below, else within; what finds no room is told by the pointer alone.
  function placeLabels(labels) {
    const scale = root.clientWidth / data.width;
    const [width, height] = [root.clientWidth, data.height * scale];
    const taken = [];
    for (const { one, label } of labels) {
      label.style.visibility = "hidden";
      const [w, h] = [label.offsetWidth, label.offsetHeight];
      const [x0, y0, x1, y1] = one.box.map((side) => side * scale);
      const left = Math.max(0, Math.min(x0, width - w));
      const right = Math.max(0, Math.min(x1, width) - w);
      const places = [[left, y0 - h - 1], [right, y0 - h - 1], [left, y1 + 1], [right, y1 + 1], [left, y0 + 1]];
      for (const [x, y] of places) {
        const inside = y >= 0 && y + h <= height;
        if (!inside || taken.some((t) => x < t[0] + t[2] && t[0] < x + w && y < t[1] + t[3] && t[1] < y + h)) continue;
        taken.push([x, y, w, h]);
        label.style.left = `${x}px`;
        label.style.top = `${y}px`;
        label.style.visibility = "visible";
        break;
      }
    }
  }
}

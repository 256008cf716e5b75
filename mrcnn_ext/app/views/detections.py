"""The image with what the model found in it, and the downloads."""

import streamlit as st
from detectron2.structures import Instances

from ..drawing import annotated, shapes
from ..inputs import Picture
from ..models import Prediction, ShownModel
from ..overlay import show_overlay
from ..results import archive, coco_file, png, stem
from .session import Settings, choose, chosen_object, pixels_of, predict

__all__ = ["show_detections", "show_picture"]


def show_detections(model: ShownModel, picture: Picture, settings: Settings) -> None:
    """Draws this part of the page."""
    wide, narrow = st.columns([3, 1], gap="medium")
    with wide:
        instances, prediction = show_picture(model, picture, settings, "detections")
    with narrow:
        _summary(model, instances, prediction)
    _downloads(model, picture, instances, settings)


def show_picture(
    model: ShownModel, picture: Picture, settings: Settings, key: str
) -> tuple[Instances, Prediction]:
    """The image with its objects; one that is clicked is chosen for all parts of the page.

    Returns:
        What is shown, and all of the prediction.
    """
    with st.spinner("predicting ..."):
        prediction = predict(model, picture)
    instances = settings.wanted(prediction, model.classes)
    drawn = shapes(pixels_of(picture), instances, model.names, settings.shown)
    title = f"{picture.title}: {len(instances)} objects"
    clicked = show_overlay(drawn, title, chosen_object(model, picture), f"overlay-{key}")
    if clicked is not None and clicked != chosen_object(model, picture):
        choose(model, picture, clicked)
        st.rerun()
    return instances, prediction


def _summary(model, instances, prediction):
    count = len(instances)
    st.metric("Objects" if count != 1 else "Object", count)
    height, width = instances.image_size
    st.caption(
        f"{1000 * prediction.seconds:.0f} ms; {width} x {height} pixels, "
        f"{prediction.size[1]} x {prediction.size[0]} for the model"
    )
    rows = [
        {"class": model.classes[int(label)], "score": float(score)}
        for label, score in zip(instances.pred_classes, instances.scores, strict=True)
    ]
    if rows:
        st.dataframe(
            rows,
            hide_index=True,
            height=min(35 * (len(rows) + 1) + 3, 420),
            column_config={"score": st.column_config.NumberColumn("score", format="%.2f")},
        )
    else:
        hidden = len(prediction.instances)
        st.info(
            f"Nothing above the threshold; {hidden} below it." if hidden else "The model finds nothing here."
        )


def _downloads(model, picture, instances, settings):
    buttons = st.columns(3)

    def picture_png():
        return png(_drawn(model, picture, instances, settings))

    buttons[0].download_button(
        *("Picture (PNG)", picture_png, f"{stem(picture)}.png", "image/png"),
        on_click="ignore",
        width="stretch",
        icon=":material/image:",
    )
    buttons[1].download_button(
        *("Results (COCO JSON)", lambda: _coco(model, [(picture, instances)])),
        *(f"{stem(picture)}.json", "application/json"),
        on_click="ignore",
        width="stretch",
        icon=":material/data_object:",
    )
    count = len(settings.pictures)
    buttons[2].download_button(
        *(f"All {count} (ZIP)" if count > 1 else "Both (ZIP)", lambda: _zip(model, settings)),
        *("predictions.zip", "application/zip"),
        on_click="ignore",
        width="stretch",
        icon=":material/folder_zip:",
    )


def _drawn(model, picture, instances, settings):
    return annotated(picture.read(), instances, model.names, settings.shown)


def _coco(model, found) -> str:
    names = {"keypoints": model.names.keypoints} if model.has_keypoints and model.names.keypoints else {}
    if names and model.names.lines:
        names["skeleton"] = [[a + 1, b + 1] for a, b in model.names.lines]
    return coco_file(found, model.kinds, names)


def _zip(model, settings) -> bytes:
    found, drawn = [], []
    for picture in settings.pictures:
        instances = settings.wanted(model.predict(picture), model.classes)
        drawn.append((picture, png(_drawn(model, picture, instances, settings))))
        if instances.has("pred_keypoint_heatmaps"):
            instances.remove("pred_keypoint_heatmaps")  # large, and not written
        found.append((picture, instances))
    return archive(drawn, _coco(model, found))

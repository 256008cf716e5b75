"""The sidebar: what to look at, and what of it is shown."""

import streamlit as st

from ..drawing import Shown
from ..inputs import IMAGE_SUFFIXES, VIDEO_SUFFIXES, Limits, Picture, sample_clip, sample_scene
from ..models import ShownModel
from .session import Settings, escaped, kept_uploads

__all__ = ["show_sidebar"]

_SCENE, _CLIP, _UPLOAD = "Scene", "Clip", "Your files"
_DEFAULT_SCORE = 0.5


def show_sidebar(models: list[ShownModel]) -> Settings:
    """Draws it and gives what it says."""
    with st.sidebar:
        st.subheader("Look at")
        pictures = _pictures()
        st.subheader("Show")
        least = max((model.min_score for model in models), default=0.0)
        score = st.slider(
            *("Score threshold", 0.0, 1.0, max(_DEFAULT_SCORE, least), 0.01),
            help=f"The model itself drops what is below {least:g}.",
        )
        columns = st.columns(2)
        masks, keypoints = any(m.has_masks for m in models), any(m.has_keypoints for m in models)
        shown = Shown(
            boxes=columns[0].toggle("Boxes", True),
            masks=columns[1].toggle("Masks", masks, disabled=not masks),
            keypoints=columns[0].toggle("Keypoints", keypoints, disabled=not keypoints),
            labels=columns[1].toggle("Labels", True),
        )
        names = list(dict.fromkeys(name for model in models for name in model.classes))
        labels = st.multiselect("Classes", names, placeholder="all")
        model = _model(models)
    return Settings(model, pictures, score, tuple(labels), shown)


def _model(models: list[ShownModel]) -> ShownModel:
    """Shows what the models are, and gives the one that the pages of one model show."""
    st.subheader("Model" if len(models) == 1 else "Models")
    place = 0
    if len(models) > 1:
        place = st.radio(
            "Detections, heads and RoI layers are of",
            range(len(models)),
            format_func=lambda i: f"`{models[i].name}`",
        )
    for model in models:
        _about(model)
    return models[place]


def _pictures() -> list[Picture]:
    source = st.segmented_control(
        "Source", [_SCENE, _CLIP, _UPLOAD], default=_SCENE, label_visibility="collapsed", required=True
    )
    if source == _UPLOAD:
        return _uploads(Limits())
    number = int(st.number_input("Number", 0, 10**6, 0, help="Each is another generated street scene."))
    # Pictures of this session alone: a few, made in milliseconds.
    kept = st.session_state.setdefault("samples", {})
    key = (source, number)
    if key not in kept:
        kept.clear()
        kept[key] = [sample_scene(number)] if source == _SCENE else sample_clip(number)
    return kept[key]


def _uploads(limits: Limits) -> list[Picture]:
    files = st.file_uploader(
        "Images or a short video",
        type=[*IMAGE_SUFFIXES, *VIDEO_SUFFIXES],
        accept_multiple_files=True,
        help=(
            f"Images up to {limits.image_bytes // 2**20} MB and {limits.megapixels:g} megapixels, videos up to "
            f"{limits.video_bytes // 2**20} MB and {limits.video_seconds:g} seconds, of which up to {limits.frames} "
            "frames are taken. Files stay in this session."
        ),
    )
    with st.spinner("reading ..."):
        pictures, problems = kept_uploads(files, limits)
    for problem in problems:
        st.error(escaped(problem), icon=":material/block:")
    return pictures


def _about(model: ShownModel) -> None:
    with st.expander(f"`{model.name}`"):
        heads = [
            "boxes",
            *(["masks"] if model.has_masks else []),
            *(["keypoints"] if model.has_keypoints else []),
        ]
        st.caption(
            f"{', '.join(heads)}; {len(model.classes)} classes; {model.parameters / 1e6:.1f} million parameters, on "
            f"{model.device}"
        )
        st.caption(escaped(", ".join(model.classes)))

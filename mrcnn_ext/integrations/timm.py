"""Fuse rules for timm's layers, by name: timm itself is imported when a model is built."""

from ..accel import register_norm

register_norm("timm.layers.norm_act.BatchNormAct2d", activation=lambda norm: norm.act)
register_norm("timm.layers.norm_act.FrozenBatchNormAct2d", activation=lambda norm: norm.act)

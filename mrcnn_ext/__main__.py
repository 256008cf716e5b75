"""``python -m mrcnn_ext`` is the command ``mrcnn-ext``."""

from mrcnn_ext_command import main

main(program="python -m mrcnn_ext")

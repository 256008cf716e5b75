#!/usr/bin/env python
"""Scenes, training, evaluation and pictures in one go. ``--help`` lists the options."""

from mrcnn_ext.studies.quickstart import main

if __name__ == "__main__":
    main()

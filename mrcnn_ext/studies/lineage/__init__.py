"""What each step from R-CNN to Mask R-CNN buys, on synthetic scenes."""

"""The networks, operators and fuse rules inside the detectors of other frameworks."""

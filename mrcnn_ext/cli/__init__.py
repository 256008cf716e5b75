"""Subcommands of ``mrcnn-ext``: one module each, whose ``command`` parses, calls the package and prints."""

"""sema-bench: how cost and quality of vision attentions grow with image size, measured so that it can be believed."""

__version__ = "0.1.0"

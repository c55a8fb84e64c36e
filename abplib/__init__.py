"""Analysis-by-Proxy: localization signals in VLMs operating as condition encoders."""

__version__ = "0.1.0"

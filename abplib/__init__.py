"""Analysis-by-Proxy: localization signals in VLMs operating as condition encoders."""

import warnings

__version__ = "0.1.0"


# In a notebook tqdm would tell each reader of the page that a machine's kernel has no widgets.
warnings.filterwarnings("ignore", "IProgress not found")

"""Analysis-by-Proxy: localization signals in VLMs operating as condition encoders."""

import gc
import warnings

# Importing models makes millions of objects that stay: looking through them takes a seventh of it.
gc.set_threshold(10_000, *gc.get_threshold()[1:])

# In a notebook tqdm would tell each reader of the page that a machine's kernel has no widgets.
warnings.filterwarnings("ignore", "IProgress not found")

"""The Ray shell of rlpost. Nothing in it is public; the core is `rlpost`."""

import gc

OWNER = "rlpost"

# Ray, torch and vLLM make millions of objects that stay. Python's own thresholds search them for
# garbage so often that it takes a fifth of the time to import them.
gc.set_threshold(100_000, 50, 100)

"""The Ray shell of rlpost. Nothing in it is public; the core is `rlpost`."""

OWNER = "rlpost"

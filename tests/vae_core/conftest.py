"""Properties have no deadline: on a busy machine a single example may take long."""

from hypothesis import settings

settings.register_profile("latentbits", deadline=None)
settings.load_profile("latentbits")

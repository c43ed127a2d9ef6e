"""The stages: each reads artifacts, writes one artifact, and can be killed and run again."""

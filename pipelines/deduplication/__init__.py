"""What `dedup` is made of: which pairs are near, which clusters they make, and the radius."""

"""What `search` is made of: opened segments, exact ranking, filters, and structures that propose candidates."""

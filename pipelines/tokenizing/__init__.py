"""What `tokenize` is made of: raw files are cut, read, cleaned and written as shards."""

"""What `graph` is made of: which documents are alike, and the words that they lend one another."""

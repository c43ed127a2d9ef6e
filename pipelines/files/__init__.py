"""How files are written, kept and carried: whole or not at all, checked, and put into a store and fetched."""

"""What an index is made of: segments, their numbered versions, and how they are told and mended."""

"""A gallery's vectors and items in a Milvus collection, for when they outgrow one machine."""

"""What can be indexed: each source lists its entries, in an order that does not change."""

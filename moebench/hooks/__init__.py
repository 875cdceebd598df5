"""Any model's routing, seen and balanced through hooks on its modules."""

"""What of the parameters is trained, and how: by name, at rates of their own, or beside them."""

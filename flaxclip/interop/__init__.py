"""Conversion of parameter trees from and to other libraries' names and files."""

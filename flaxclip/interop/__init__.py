"""Names and files of other systems, in and out of our parameter tree."""

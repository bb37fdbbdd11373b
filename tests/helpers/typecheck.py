"""What checks the annotations of the package while it is tested."""

from beartype import BeartypeConf, beartype

# PEP 484: an int is good wherever a float is asked for.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))

"""What tests check calls with: annotations of arguments and results, jaxtyping's shapes and dtypes among them."""

from beartype import BeartypeConf, beartype

check_calls = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float

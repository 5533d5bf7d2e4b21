"""A zygote: how it comes up, forks, and ends what its workers leave; and the guard above it."""

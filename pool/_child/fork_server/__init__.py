"""A zygote: how it comes up, forks, and kills what its workers leave behind; and the guard above it."""

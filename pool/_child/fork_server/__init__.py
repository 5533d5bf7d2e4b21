"""A zygote: how it starts, forks, and kills processes that its workers leave; and its guard."""

"""Keeps a registry of the subclasses of its class."""

registry: dict[str, type] = {}


class Plugin:
    def __init_subclass__(cls) -> None:
        if cls.__name__ in registry:
            raise TypeError(f"there is a plugin {cls.__name__} already")
        registry[cls.__name__] = cls


class Default(Plugin):
    pass

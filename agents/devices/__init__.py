"""The simulated devices that come with the agent, a TOML file each."""

from importlib import resources


def device_names() -> tuple[str, ...]:
    """Names of the devices."""
    files = resources.files(__name__).iterdir()
    return tuple(sorted(f.name[:-5] for f in files if f.name.endswith(".toml")))


def device_text(name: str) -> str:
    """The content of a device's file."""
    return (resources.files(__name__) / f"{name}.toml").read_text("utf-8")

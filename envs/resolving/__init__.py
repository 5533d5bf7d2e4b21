"""From a spec to a plan, and to the digest that identifies it."""

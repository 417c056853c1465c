"""The wire: agent.proto and the stubs generated from it."""

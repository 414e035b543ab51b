"""The commands of cxr beside LightningCLI's."""

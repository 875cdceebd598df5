"""The paper's findings, a YAML file each, and what the runs say of them."""

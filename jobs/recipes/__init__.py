"""Ready run configurations, one YAML file each."""

"""Scripts that build larger pools than the demo's, into the ignored folder .pools."""

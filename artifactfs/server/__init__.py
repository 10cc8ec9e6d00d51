"""The bundled Artifacts server: Git repositories behind a REST API."""

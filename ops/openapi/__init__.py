"""The admin API as OpenAPI, from the shapes that rotator and reference backend share."""

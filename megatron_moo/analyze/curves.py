"""Names of the measures that are one number a layer. Imports nothing: the report reads these without torch."""

from __future__ import annotations

# What they say.
CURVES = {
    "silhouette": "silhouette of languages (cosine)",
    "probe": "linear probe of the language, held out",
    "retrieval": "translation is the nearest neighbour",
    "distance": "distance of means / spread within",
    "variance_language": "variance explained by language",
    "variance_meaning": "variance explained by meaning",
    "cka": "CKA between languages",
    "owned": "share of MLP neurons of one language",
}
# Heads of a table's columns.
SHORT = ("silh.", "probe", "retr.", "dist.", "v.lang", "v.mean", "cka", "owned")

"""The miniature world: scenes as data, their pictures, edits and references."""

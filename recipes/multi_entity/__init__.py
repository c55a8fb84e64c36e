"""The paper's data: OmniEdit (B.1) and the multi-entity set (A.2)."""

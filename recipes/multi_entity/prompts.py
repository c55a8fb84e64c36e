"""The system prompts of appendix A.2, line breaks inside paragraphs joined by spaces."""

from __future__ import annotations

SCENES_SYSTEM = (
    "Create a list of 200 pairs of prompts. The generation prompts should generate diverse and "
    "interesting images, each containing 4 to 9 objects of the same base type, organized in random "
    "layouts and varied scenes. You may use templates such as:\n"
    "- “A photo of {}”\n"
    "- “A high-resolution realistic image of {}”\n"
    "- “A close-up photo of a {}”\n"
    "This is not an exhaustive list. The goal is to obtain a set of diverse images that can be "
    "used to test the local editing capabilities of models.\n"
    "Each generation prompt must contain N - 1 identical objects, and one anomalous object that "
    "differs clearly in color, shape, or appearance. Each edit prompt must instruct the model to "
    "convert the anomalous object to match the other N - 1 objects exactly.\n"
    "Example:\n"
    "- GENERATION: An image of 7 dogs in a line; 6 are Labradors and one is a Husky.\n"
    "- EDIT: Turn the Husky into a Labrador, like all the other dogs."
)
"""Asks for prompt pairs."""

SCENES_REQUEST = "List number {}: do not repeat pairs of earlier lists."
"""The user's turn, which the paper does not give; one list holds 200 pairs."""

SPATIAL_TERMS = (
    "leftmost", "rightmost", "second from the left", "second from the right",
    "third from the left", "third from the right", "middle", "center", "topmost", "bottommost",
    "top left", "top right", "bottom left", "bottom right", "frontmost", "backmost",
)  # fmt: skip
"""The paper prints the first three and the last two; what lies between is taken here."""

SPATIAL_SYSTEM = (
    "You are an expert at describing image edits. You will see two images side by side: "
    "LEFT = TARGET (desired result), RIGHT = SOURCE (the image to be modified). TASK: Write one "
    "edit instruction that transforms the RIGHT image into the LEFT image. Use ONLY [spatial "
    f"terms]: {', '.join(SPATIAL_TERMS)}. Output format: Turn the [EXACT_SPATIAL_POSITION] "
    "[object] into [detailed description]. NEVER identify the object by "
    "appearance/color/breed/type/size, ONLY by spatial position."
)
"""Asks for a spatial instruction. Where the paper leaves out words by dots, none are added but
those of `SPATIAL_TERMS`."""

STRUCTURE_SYSTEM = (
    "Expand the scene that the user describes into one JSON object with the keys "
    "short_description, objects (a list; of each: description, location, relationship, "
    "relative_size, shape_and_color, appearance_details), background_setting, lighting, "
    "aesthetics, photographic_characteristics, style_medium and context. Keep the number, the "
    "places and the differences of the objects exactly as described. Answer with the JSON alone."
)
"""Asks for a structured prompt, which FIBO is made for; the paper does not print its own."""

"""The sentences that ``grammar.py`` fills in: one set to train on, one held out.

Frames are requests: ``{x}`` stands for a number or an expression, ``{a_n}`` for a number with
its article (a 3, an 8). Phrases are expressions that fit into a frame. Sentences are requests
that hold their own expression. ``{a}`` and ``{b}`` are the operands; a phrase or sentence of
products without ``{a}`` doubles ``{b}``. An expression means the same in every frame. Templates
hold no numbers, and not the word "one", outside their slots.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Templates:
    """One half of the language. Operations are "sum", "difference" and "product".

    Args:
        number_frames: requests for a number only.
        frames: requests for a number or an expression.
        result_frames: requests that suit an expression only.
        phrases, sentences: expressions of each operation, without and with their own request.
        unsupported: expressions to refuse; they fit into frames too.
        chat: sentences that do not ask for a number; ``{a}`` is any number.
        things: nouns to refuse in ``number_frames``.
    """

    number_frames: tuple[str, ...]
    frames: tuple[str, ...]
    result_frames: tuple[str, ...]
    phrases: dict[str, tuple[str, ...]]
    sentences: dict[str, tuple[str, ...]]
    unsupported: tuple[str, ...]
    chat: tuple[str, ...]
    things: tuple[str, ...]


def words(block: str) -> tuple[str, ...]:
    return tuple(block.split())


def _split(block: str) -> tuple[str, ...]:
    return tuple(" ".join(template.split()) for template in block.split(" |"))


TRAIN = Templates(
    number_frames=_split("""
        Draw {a_n} | Show me {a_n} | What's {a_n} look like? | What does {a_n} look like? |
        Paint {a_n} | Sketch {a_n} for me | I'd like {a_n} | I want {a_n} | Give me {a_n} |
        Make me {a_n} | Write {a_n} | Write down the number {n} | Draw the number {n} |
        Show the number {n} | The number {n} | How do you write {n}? | How is {n} written by hand? |
        {a_n} | Just {a_n} | {a_n} by hand | Show me how you draw {a_n} |
        I need a picture of {a_n} | A picture of the number {n} | An image of {a_n} |
        Generate {a_n} | Create {a_n} that looks handwritten | I would love to see {a_n} |
        Can I see {a_n}? | May I have {a_n}? | Could I get {a_n}? | Do you know how to draw {a_n}? |
        Put {a_n} on the page | Scribble {a_n} | My favourite number is {n}, draw it |
        My daughter turns {n} today, draw her age | {a_n} in your best handwriting |
        Pretend you are a child and write {a_n} | I live at number {n}, make me a sign
    """),
    frames=_split("""
        {x} | Draw {x} | Show me {x} | Show {x} | Imagine {x} | Paint {x} | Sketch {x} | Write {x} |
        Write {x} for me | Draw {x} for me | Draw me {x} | Give me {x} | Make {x} | Print {x} |
        Display {x} | Generate {x} | Generate an image of {x} | Create a picture of {x} |
        I want to see {x} | I'd like to see {x} | I would like you to draw {x} |
        I want you to write {x} | Let me see {x} | Let's see {x} | Can you do {x}? |
        Do you know {x}? | How does {x} look? | Picture {x} | Visualise {x} | Handwrite {x} |
        Take a pen and write {x} | A drawing of {x} | An image of {x} | A sketch of {x} |
        {x} as a drawing | {x} as a picture | {x}, handwritten | Now draw {x} | Next: {x} |
        Try {x} | I'm waiting for {x} | All I want is {x}
    """),
    result_frames=_split("""
        What is {x}? | What's {x}? | How much is {x}? | What does {x} make? |
        What does {x} come to? | What do you get for {x}? | {x} is what? | {x} equals | {x} = |
        {x} = ? | Calculate {x} | Compute {x} | Work out {x} | Solve {x} | Evaluate {x} |
        Calculate {x} and draw the result | Work out {x} and show me the answer |
        Draw the result of {x} | Draw the answer to {x} | Show me the result of {x} |
        Show the solution of {x} | Tell me {x} | Write down the answer: {x} |
        My homework says {x}, what is it? | Draw what {x} is | I forgot what {x} is, show me |
        The result of {x} | Do the sums: {x}
    """),
    phrases={
        "sum": _split("""
            {a} + {b} | {a}+{b} | {a} plus {b} | {a} added to {b} | the sum of {a} and {b} |
            the total of {a} and {b} | {a} and {b} together | {a} and {b} added together |
            {a} more than {b} | {a} increased by {b} | {a} with {b} added
        """),
        "difference": _split("""
            {a} - {b} | {a}-{b} | {a} − {b} | {a} minus {b} | {a} take away {b} | {a} less {b} |
            {b} less than {a} | {b} subtracted from {a} | {b} taken away from {a} |
            {a} reduced by {b} | the difference between {a} and {b}
        """),
        "product": _split("""
            {a} x {b} | {a}x{b} | {a} * {b} | {a}*{b} | {a} × {b} | {a} times {b} |
            {a} multiplied by {b} | the product of {a} and {b} | twice {b} | double {b} |
            {b} doubled
        """),
    },
    sentences={
        "sum": _split("""
            Add {a} to {b} | Add {a} and {b} | Add {a} and {b} and draw the result |
            Start with {a}, add {b} | Take {a} and add {b} | What do I get by adding {a} to {b}? |
            Show me what adding {a} and {b} gives |
            I have {a} apples and buy {b} more, how many are there? |
            {a} birds sit in a tree and {b} more come, draw how many
        """),
        "difference": _split("""
            Subtract {b} from {a} | Take {b} away from {a} | Take {b} from {a} |
            Take {b} away from {a} and draw what is left | Start with {a}, take away {b} |
            What does subtracting {b} from {a} give? |
            Draw what you get by taking {b} away from {a} |
            I had {a} apples and ate {b}, how many are left? |
            {a} birds sit in a tree and {b} fly away, draw how many stay
        """),
        "product": _split("""
            Multiply {a} by {b} | Multiply {a} and {b} | Multiply {a} by {b} and draw the result |
            What comes of multiplying {a} by {b}? | Double {b} | Double {b} and draw it |
            {a} bags hold {b} apples each, how many apples is that?
        """),
    },
    unsupported=_split("""
        {a} divided by {b} | {a} / {b} | {a} ÷ {b} | {a} over {b} | half of {a} | {a} squared |
        the square root of {a} | {a} to the power of {b} | {a} + {b} + {c} | {a} plus {b} plus {c} |
        {a} plus {b} minus {c} | {a} times {b} plus {c} | the sum of {a}, {b} and {c} |
        {a} percent of {b} | {a} or {b} | {a} modulo {b}
    """),
    chat=_split("""
        Hello | Hi there | How are you? | Who are you? | What can you do? |
        What's the weather like today? | Tell me a joke | Tell me a story | Thank you |
        Thanks, that was nice | Good morning | What time is it? | Play some music |
        Where is the station? | What is the capital of France? | Who wrote Hamlet? |
        Translate this into German | Write me a poem | I am hungry | Are you a robot? |
        Open the window | Sing a song | Help | Stop | Nothing | Draw | Draw something | Show me |
        What is the meaning of life? | How old are you? | How far is the moon? | Wake me at {a} |
        Set a timer for {a} minutes | Turn the volume up to {a} | It is {a} degrees outside |
        Buy {a} eggs | Draw me a plan with {a} rooms
    """),
    things=_split("""
        cat | dog | horse | house | tree | flower | car | boat | bird | fish | face | circle |
        square | letter B | word | mountain | robot | elephant | apple | sunset | unicorn | dragon |
        plane | map of Europe
    """),
)

HELD_OUT = Templates(
    number_frames=_split("""
        Would you kindly draw {a_n}? | Could I see {a_n} drawn by hand? | Sketch the number {n} |
        What would {a_n} look like on paper? | I need {a_n} | {a_n} would be lovely |
        Make a drawing of {a_n} | My house number is {n}, paint it | Show me what {a_n} looks like
    """),
    frames=_split("""
        I'd love {x} | Paint {x} for me | Make me a picture of {x} | Would you show {x}? |
        Have a go at {x} | {x} drawn by hand | Let me have {x} | Write down {x} |
        Please let me see a sketch of {x} | I am looking for {x}
    """),
    result_frames=_split("""
        What do I get if I do {x}? | Can you tell me what {x} is? | Find {x} |
        Figure out {x} and draw it | Show me what {x} comes to | The answer to {x} |
        Draw the solution to {x}
    """),
    phrases={
        "sum": _split("""
            {a} and {b} in total | the sum when {a} is added to {b} | {a} plus another {b}
        """),
        "difference": _split("""
            {a} with {b} taken away | what is left when {b} is taken from {a} |
            {a} after subtracting {b}
        """),
        "product": _split("""
            {a} and {b} multiplied | the product when {a} is multiplied by {b} | {b} taken twice
        """),
    },
    sentences={
        "sum": _split("""
            Put {a} and {b} together and show the total |
            There are {a} cats and {b} dogs, how many animals is that?
        """),
        "difference": _split("""
            From {a} subtract {b} | I had {a} cakes and gave {b} away, how many are left?
        """),
        "product": _split("""
            Take {b} and double it | {a} boxes with {b} pens each, how many pens?
        """),
    },
    unsupported=_split("""
        {a} split into {b} parts | a third of {a} | {a} cubed | {a} minus {b} minus {c} |
        the average of {a} and {b} | {a} plus {b} times {c}
    """),
    chat=_split("""
        How is it going? | What do you think about art? | Tell me something interesting |
        Is it raining? | Who painted the Mona Lisa? | I don't know what I want | Can you cook? |
        What is your name? | Book a table for {a} people | Remind me in {a} hours
    """),
    things=_split("""
        giraffe | bicycle | triangle | castle | letter Q | owl | banana | portrait of my mother
    """),
)

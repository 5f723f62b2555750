"""Closed classes of words, by lists of our own: English function words, and particles and function words of Chinese."""

from .schema import WORDS

_ENGLISH = {
    "article": "a an the",
    "pronoun": """i me my mine myself you your yours yourself yourselves he him his himself she her hers herself it its
        itself we us our ours ourselves they them their theirs themselves thee thou thy thine one oneself someone
        somebody something anyone anybody anything everyone everybody everything nobody nothing none each other another
        i'm i've i'd i'll you're you've you'd you'll he's he'd he'll she's she'd she'll it's it'd it'll we're we've we'd
        we'll they're they've they'd they'll that's there's""",
    "determiner": """this that these those some any every all both either neither few many much more most several such
        same own enough less least half""",
    "preposition": """of in to for with on at by from about into through during before after above below between among
        against without within along across behind beyond under over near upon toward towards around amid beside besides
        beneath despite except inside outside onto out off up down past since till until throughout underneath unlike
        via per""",
    "conjunction": """and or but nor so yet because although though while whereas if unless whether than as lest
        whenever wherever once""",
    "auxiliary": """am is are was were be been being do does did doing done have has had having can could may might
        must shall should will would ought need dare used art hath hast doth dost""",
    "negation": """not no never cannot don't doesn't didn't isn't aren't wasn't weren't won't wouldn't shan't shouldn't
        can't couldn't haven't hasn't hadn't mustn't needn't mightn't ain't nowhere hardly scarcely barely""",
    "question": "who whom whose which what when where why how whoever whatever whichever however",
    "adverb": """very too also only just even still already again always often sometimes usually rather quite almost
        here there now then today ever soon later away back together perhaps maybe else ago far well""",
    "discourse": """therefore thus hence moreover furthermore nevertheless nonetheless otherwise instead indeed
        meanwhile consequently accordingly finally first second third next yes oh ah okay ok hmm wait actually
        namely likewise similarly""",
}  # fmt: skip
_CHINESE = {
    "particle": "的 地 得 了 着 过 吗 呢 吧 啊 呀 嘛 啦 哦 嗯 们 所 之 者 第",
    "pronoun": "我 你 您 他 她 它 我们 你们 他们 她们 它们 自己 大家 咱们",
    "determiner": "这 那 这个 那个 这些 那些 每 各 某 一个 一些 几 多 少",
    "preposition": "在 从 把 被 对 向 给 跟 按 比 由 于 以 为 为了 关于 对于 根据 通过",
    "conjunction": "和 与 及 或 而 但 但是 因为 所以 如果 虽然 并 并且 而且 或者 以及 还是 则 若",
    "auxiliary": "是 有 会 能 要 可以 可能 应该 必须 想 需要 能够",
    "negation": "不 没 没有 别 无 未 非 不是",
    "question": "谁 什么 哪 哪里 怎么 为什么 多少 何 如何",
    "adverb": "很 都 也 就 才 又 再 还 最 更 太 已经 只 正在 非常 常常 刚",
    "discourse": "因此 然而 此外 于是 其实 首先 其次 最后 总之 例如",
}


def _codes(lists: dict[str, str]) -> dict[str, int]:
    """Code in `WORDS` by word; the first list that has a word decides."""
    found: dict[str, int] = {}
    for name, words in lists.items():
        for word in words.split():
            found.setdefault(word, WORDS.index(name))
    return found


ENGLISH = _codes(_ENGLISH)
"""Code in `analysis.corpus.schema.WORDS` of each English word, in lower case, with a straight apostrophe."""

CHINESE = _codes(_CHINESE)
"""The same of Chinese words of one to three characters."""

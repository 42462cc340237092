"""Which texts do tokenizers get wrong? The corpus that ours and llama.cpp's must agree on."""

from __future__ import annotations

from typing import Final

TEXTS: Final = (
    "", " ", "  ", "\n", "\r\n", "\t", "a", " a", "a ", "\n\n\n", " \n \n", "\r\n\r\n\t x", 
    "   leading", "trailing   ",
    "Hello, world! This is a plain English sentence.",
    "it's I'm you're we'll they've he'd DON'T I'LL WE'RE 'tis 'S 's x'y rock'n'roll",
    "it’s I’m you’re we’ll ’s ‘quoted’ “double” «guillemets»",
    "0 1 12 123 1234 12345 123456 1234567 12345678901 3.14 1,000,000 0x1F 1e-9 v2.0.1 abc123def 2024-01-02"
    " 12a 123_4",
    "١٢٣٤٥٦ १२३४ ৪৫৬৭ ½ ² ³ Ⅳ ① ㊿ 一二三四 12١٢345",
    "camelCase PascalCase SCREAMING_CASE snake_case kebab-case XMLHttpRequest iPhone aB Ab ABc abC",
    "def f(x):\n    if x > 0:\n\t\treturn x ** 2  # comment\n\n\n    return -1\r\n",
    "for (int i=0;i<n;++i){a[i]+=b[i]*c[i];} // done\n#include <stdio.h>\n",
    "https://example.com/a/b?c=d&e=f#g user@example.org /usr/bin C:\\Windows\\System32",
    "!!! ??? ... --- === +++ *** ### $$$ %%% ^^^ &&& ((( ))) [[[ ]]] {{{ }}} <<< >>> ~~~ ``` "
    "||| \\\\\\ ///\n//\r\n/",
    "price: $5 + €3 = £8 ± ¥1 ≈ ₿; 50% ^ ~tilde `code` |pipe| <tag> a=b",
    "naïve café résumé Ångström façade Øre Łódź ñ ß ẞ ſ K Å ŉ ǅ",
    "e\u0301 cafe\u0301 n\u0303 a\u0308\u0304b Z\u0351\u036b\u0343algo \u0301start x\u0301\u0301\u0301",
    "Привет, мир! Как дела? ЁЖИК ёлка Україна їжак Ћирилица",
    "Γειά σου Κόσμε; ΑΒΓ αβγ ὦ ᾧ ΐ",
    "שלום עולם! עִבְרִית בְּרֵאשִׁית \u200fRTL\u200e",
    "مرحبا بالعالم؟ اللُّغَة العَرَبِيَّة ١٢٣، می‌خواهم؛ متن",
    "नमस्ते दुनिया। हिन्दी क्षत्रिय বাংলা ভাষা தமிழ் తెలుగు ಕನ್ನಡ മലയാളം",
    "สวัสดีชาวโลก ภาษาไทย ລາວ ខ្មែរ မြန်မာ བོད་ཡིག",
    "你好，世界！这是一个测试。「引号」《书名》中文English混合123数字",
    "こんにちは世界。カタカナ ﾊﾝｶｸ ひらがな、漢字々〆ヶ〇",
    "안녕하세요 세계! 한국어 ㄱㄴㄷ ㅏㅑ \u1112\u1161\u11ab\u1100\u1173\u11af ᄒ",
    "𠀀𠮷野家 𪚥 豈 更 \U0002f800 〇 ㄅㄆㄇ ㆎ",
    "😀 👍🏽 👨‍👩‍👧‍👦 🏳️‍🌈 🇩🇪🇫🇷 ❤️ ☃ ✈︎ 1️⃣ 🧑🏿‍🚀",
    "\U0001d4d7\U0001d4ee\U0001d4f5\U0001d4f5\U0001d4f8 ＡＢＣ ａｂｃ １２３ ！？ ﬁ ﬂ ㎏ № ™ ℃",
    "\u00a0nbsp\u00a0\u00a0x \u2003em\u2003 \u3000ideographic\u3000\u3000y \u1680 "
    "\u2028line\u2029par \u202f \u205f \u0085nel",
    "\u200bzero\u200bwidth\u200c\u200d\ufeff bom\u00adsoft\u2060 ab\u200ccd ef\u200dgh",
    "nul\0inside \0\0 \x01\x02 \x1b[31m bell\x07 \x7f del \x1c\x1d\x1e\x1f x",
    "\ue000private\uf8ff \U000f0000 \U0010ffff \ufffe \ufffd \u0378 \U000e0041",
    "𐐀𐐨 𞤀𞤢 ᲐᲑ ᏣᎳᎩ ꭰ 𑢠 Ꙁꙁ ⰀⰁ",
    "word" + " " * 50 + "word" + "\t" * 20 + "x" + "\n" * 30 + "y" + " \t\n" * 10 + "z" + " " * 40,
    "a" * 200, "A" * 200, "9" * 200, "!" * 200, "é" * 100, "中" * 100, "😀" * 40, "ab" * 100, "1a" * 60,
    "IMGIMGABCDZ <sentinel:12> IMGIMGZ IMGIMGABCDEZ    four  two",
    "a/b //c\n/d ./e \n// /\r\n x/\n", "(a) (b|c) d.e,f!g?h…i。j，k",
    "tab\tsep\tvalues\n1\t2\t3\n", "line\u000bvt\u000cff", " 's 't", "''s '' ' '", "x 'Re Y'Ve 'LL'll",
    "ﺍﻟﻌﺮﺑﻴﺔ ٪ ؟ ، ۔ ، … 。", "a\u0300b\u0300 1\u0301 !\u0301 \u0301 \n\u0301", "ⅷ ⅻ ↂ ➀ 𝟙𝟚𝟛 ๑๒๓",
    "if(a&&b||!c){return`${x}`;}", "<|im_start|>user\nhi<|im_end|>\n<|endoftext|> <|im_start|>  x",
    "</s><s><unk>[INST]",
)  # fmt: skip

FUZZ_ALPHABET: Final = (
    "abzABZ  \t\n\r09'sStTrReEvVmMlLdD.,!/_-<>$éÉßſ\u0301日本あア한ㄱ١٣½\u00a0\u3000\u2028\u0085"
    "😀\u200d\u200c€µͅǅʰªعـك\u093e\0\ue000。、〿\u17d4\u0e47\u3008𠀀"
)

"""Generated stories: their tokens, topics, and what there is to learn."""

from collections import Counter, defaultdict

from routed_rl.lm.finders import find_topic
from routed_rl.lm.stories import FORGET, FUNCTION, GENERIC, LENGTH, SHARE, TOPICS, generate_stories, stories_tokenizer

STORIES = list(generate_stories(3000, seed=0))


def test_a_story_is_a_function_of_seed_and_number() -> None:
    assert list(generate_stories(50, seed=0)) == STORIES[:50]
    assert list(generate_stories(50, seed=1)) != STORIES[:50]


def test_a_story_is_as_long_as_it_says_and_comes_back_from_its_tokens() -> None:
    tokenizer = stories_tokenizer()
    assert len(tokenizer) == len(set(tokenizer.get_vocab())) == 96
    for story in STORIES[:100]:
        ids = tokenizer(story.text, add_special_tokens=False)["input_ids"]
        assert len(ids) + 2 == LENGTH
        assert tokenizer.decode(ids) == story.text
        assert not {tokenizer.bos_token_id, tokenizer.eos_token_id} & set(ids)


def test_topics_have_their_shares_and_their_words() -> None:
    shares = Counter(story.topic for story in STORIES)
    assert abs(shares[FORGET] / len(STORIES) - SHARE) < 0.02
    for topic in TOPICS:
        if topic != FORGET:
            assert abs(shares[topic] / len(STORIES) - (1 - SHARE) / 5) < 0.02
    content = Counter()
    for story in STORIES:
        words = set(story.text.split())
        assert words <= {*TOPICS[story.topic], *GENERIC, *FUNCTION}
        content.update(word in TOPICS[story.topic] for word in story.text.split() if word not in FUNCTION)
        assert find_topic(FORGET)(story) == (story.topic == FORGET)
    assert abs(content[True] / content.total() - 0.7) < 0.02


def test_words_follow_from_one_another_in_the_same_way_in_every_corpus() -> None:
    likely = []
    for corpus in (STORIES, list(generate_stories(3000, seed=1))):
        after: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        for story in corpus:
            words = story.text.split()
            for first, between, second in zip(words, words[1:], words[2:], strict=False):
                if between in ("near", "with"):
                    after[between, first][second] += 1
        frequent = {key: counter for key, counter in after.items() if counter.total() > 200}
        assert len(frequent) > 50
        share = sum(counter.most_common(1)[0][1] for counter in frequent.values())
        assert abs(share / sum(counter.total() for counter in frequent.values()) - (0.9 + 0.1 / 12)) < 0.01
        likely.append({key: counter.most_common(1)[0][0] for key, counter in frequent.items()})
    assert all(likely[0][key] == likely[1][key] for key in set(likely[0]) & set(likely[1]))

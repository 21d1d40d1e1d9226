"""Small templates whose output Jinja2 decides: one construct, or one of its borders, each."""

VARIABLES = {
    "text": "  Hello Wörld, <|im_end|> it's \"ok\"\n",
    "lines": "one\ntwo\n\nthree",
    "n": 7,
    "f": 2.5,
    "yes": True,
    "nil": None,
    "items": [3, 1, 2],
    "names": ["bob", "Ann", "carl"],
    "people": [{"name": "bob", "age": 30, "home": {"city": "Bern"}}, {"name": "Ann", "age": 25, "home": {"city": "Aarau"}},
               {"name": "carl", "age": 30, "home": {"city": "Chur"}}],
    "tool": {"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "number", "items": 1}}, "required": []}},
    "deep": [[1, [2, [3, {"k": [4]}]]]],
    "floats": [0.1, 1.0, 1e16, 1e15, 123456789012345.6, 1e-4, 1e-5, 1.5e300, -0.0, 5e-324, 1e22, 0.30000000000000004],
    "unicode": "straße ﬁ ǆ İ ΑΣ ΑΣΑ 𝕏 é e\u0301 \u00a0x\u2003",
}

EXPRESSIONS = """
1 + 2
1 - 2 - 3
2 * 3 + 4
2 + 3 * 4
(2 + 3) * 4
7 / 2
8 / 2
7 // 2
-7 // 2
7 // -2
7 % 3
-7 % 3
7 % -3
7.5 // 2
-7.5 % 2
2 ** 3
2 ** 3 ** 2
-2 ** 2
2 ** -1
2 ** 0.5
4 ** 0
0 ** 0
1 / 0
1 // 0
1 % 0
0 ** -1
1.0 / 0
9223372036854775807
-9223372036854775807 - 1
1e400 == 1
0x1F + 0b101 + 0o17
1_000
1e3
1.5e-7
1.
.5
007
10 ~ 'a'
1 ~ 2 + 3
'a' + 'b' * 2
'a' + 1
1 + 'a'
'a' - 'b'
'a' * -1
3 * 'ab'
[1] * 2
[1] + [2]
(1,) + (2,)
[1] + (2,)
none + 1
missing + 1
1 + missing
-missing
true + true
true * 3
not 1
not not 0
-n
+f
--n
- -1
1 < 2
1 < 2 < 3
1 < 3 < 2
3 > 2 >= 2
1 == 1.0
1 == true
'1' == 1
none == false
missing == missing
missing == none
[1, 2] == [1, 2.0]
(1, 2) == [1, 2]
{'a': 1, 'b': 2} == {'b': 2, 'a': 1}
'a' < 'b'
'Z' < 'a'
'é' > 'z'
'a' < 1
[1, 2] < [1, 3]
[1] < [1, 0]
(1,) < [2]
none < 1
1 != 2
1 in [1, 2]
1 not in [1, 2]
'a' in 'abc'
'' in 'abc'
1 in 'abc'
'name' in tool
'nome' in tool
n in items
'x' in missing
missing in items
missing in 'abc'
1 in 5
1 in none
(1, 2) in [(1, 2)]
1 in [1] in [[1]]
'a' in 'ab' == true
true and 'x'
false or 'y'
0 or '' or none
1 and 2 and 3
1 or 2
not true and false
not (true and false)
'a' if yes else 'b'
'a' if missing else 'b'
'a' if nil
('a' if nil) is defined
1 if 0 else 2 if 0 else 3
(1 if 1 else 2) if 0 else 3
'x' ~ ('y' if false)
missing
missing.x
missing['x']
missing[0]
missing()
missing | upper
missing | length
missing | list
missing | join(',')
missing | first is defined
missing ~ 'x'
nil
nil.x
nil.x.y
nil['x']
nil ~ ''
nil | length
nil | upper
nil | default('d')
nil | default('d', true)
missing | default('d')
missing | d
missing.x | default('d')
tool.x | default('d')
tool.x.y | default('d')
tool.name
tool['name']
tool.parameters.properties.x.type
tool.items is defined
tool.parameters.properties.x.items is number
tool.parameters.properties.x['items']
tool.keys() | list
tool.values() | list | length
tool.items() | list | length
tool.items()
tool.keys()
tool.get('name')
tool.get('nome')
tool.get('nome', 'd')
tool.get('nome', default='d')
tool.get()
tool.nope()
tool.pop
tool.pop('name')
tool.update({'a': 1})
tool.__class__
tool.copy().name
items[0]
items[-1]
items[3]
items[-4]
items['0']
items[1.0]
items[true]
items.0
items.append(4)
items.append is defined
items.index(2)
items.index(9)
items.count(1)
items[1:]
items[:-1]
items[::2]
items[::-1]
items[5:]
items[2:0:-1]
items[::0]
items[:none]
items['a':]
text[2:7]
text[-3:]
text[::-1]
text[100:]
text[7]
text[99]
'日本語'[1:]
'日本語'[::-1]
'日本語' | length
deep[0][1][1][1].k[0]
deep
(1, 2)[0]
(1,)
()
[]
{}
{'a': 1, 'a': 2}
{1: 'x', '1': 'y', 1.0: 'z', true: 't'}
{[1]: 2}
{(1, 2): 'pair'}[(1, 2)]
{'a': {'b': none}}
dict(a=1, b=[2])
dict([('a', 1)], b=2)
dict({'a': 1})
dict(1)
['x', "y'", 'z"', 'w\\'"', "tab\\t", '\\x00', 'é', '\\u200b', '\\\\']
'a' 'b'
'\\n' == '\\x0a'
'\\u00e9\\U0001F600\\101\\q'
'line \\
next'
"it's"
'say "hi"'
'it\\'s'
1.0
100000000000000000000.0
1e16
1e15
0.1 + 0.2
-0.0
1e-5
0.0001
3.0 | string
floats
floats | join(' ')
floats | tojson
true
none
[true, none]
range(3)
range(3) | list
range(1, 10, 3) | list
range(5, 0, -2) | list
range(3)[1]
range(3)[1:] | list
range(3) | length
range(0)  | list
range(1, 2, 0)
range(100001) | length
range(1000000000)
range('a')
range()
text | trim
text | trim | length
'xxaxx' | trim('x')
'xyaxy'.strip('yx')
text.strip()
text.lstrip()
text.rstrip()
'\\u00a0\\u2003a\\x1f' | trim
'\\u200ba' | trim == 'a'
'a,b,,c'.split(',')
'a,b,,c'.split(',', 1)
' a  b c '.split()
' a  b c '.split(none, 1)
' a  b c '.rsplit(none, 1)
'a,b,c'.rsplit(',', 1)
'aaa'.split('aa')
'aaa'.rsplit('aa')
'aaa'.rsplit('aa', 1)
''.split()
''.split(',')
'a'.split('')
'a\\x1cb c'.split()
'abc'.partition('b')
'abc'.partition('x')
'abcbd'.rpartition('b')
'abc'.rpartition('x')
lines.splitlines()
'a\\r\\nb\\x0bc\\u2028d\\n'.splitlines()
'a\\nb'.splitlines(true)
'abc'.startswith('ab')
'abc'.startswith(('x', 'a'))
'abc'.startswith(['x'])
'abc'.startswith('b', 1)
'abc'.startswith('', 4)
'abc'.endswith('bc')
'abc'.endswith('b', 0, 2)
'abc'.find('c')
'日本語'.find('語')
'abc'.find('x')
'abc'.find('', 4)
'abcabc'.rfind('b')
'abc'.index('x')
'abab'.count('ab')
'abab'.count('')
'aaaa'.count('aa')
'a-b-c'.replace('-', '+')
'a-b-c'.replace('-', '+', 1)
'abc'.replace('', '-')
'abc'.replace('', '-', 2)
'aaa'.replace('aa', 'b')
'日本'.replace('', '.')
'a'.replace('a')
'a-b' | replace('-', '+')
123 | replace(2, 5)
'-'.join(['a', 'b'])
'-'.join([1])
'-'.join('abc')
'abc'.upper()
'ABC'.lower()
'hello world'.title()
"they're bill's".title()
'hello wORLD'.capitalize()
'Hello'.swapcase()
unicode | upper
unicode | lower
unicode | title
unicode | capitalize
unicode.title()
unicode.swapcase()
unicode | length
unicode.split()
'ΌΔΥΣΣΕΎΣ' | lower
'ΑΣ.' | lower
'hello-world (foo) [bar] <baz>' | title
'hello world' | capitalize
'abc'.isdigit()
'123'.isdigit()
''.isdigit()
'abc1'.isalnum()
'abc'.isalpha()
' \\n'.isspace()
'abc'.islower()
'ABC1'.isupper()
'1'.isupper()
'é'.isascii()
''.isascii()
'a'.center(5) ~ '|'
'ab'.center(5, '*')
'a'.center(4, '*')
'a' | center(6) ~ '|'
'a'.ljust(3, '.')
'a'.rjust(3)
'-5'.zfill(4)
'5'.zfill(0)
'prefix-x'.removeprefix('prefix-')
'x-suffix'.removesuffix('-suffix')
'{} and {}'.format(1, 'b')
'{0} {1} {0}'.format('a', 'b')
'{x} {y.name} {z[0]} {t[name]}'.format(x=1, y=tool, z=[5], t=tool)
'{{}} {!r}'.format('q')
'{}'.format()
'{'.format()
'%s and %s' % (1, 'b')
'%s' % 'x'
'%s' % [1]
'%s' % none
'%d%%' % 5
'%05d|%-5d|%+d|% d' % (42, 42, 42, 42)
'%5.2f|%e|%g|%g' % (3.14159, 12345.678, 0.00001, 1e20)
'%x %X %o %#x' % (255, 255, 8, 255)
'%5s|%-5s|%.2s' % ('ab', 'ab', 'abcdef')
'%(a)s-%(b)d' % {'a': 'x', 'b': 3}
'%s %s' % 'x'
'%s' % (1, 2)
'%d' % 'x'
'%d' % 3.7
'%s'
'%z' % 1
'100%' % ()
'%r %a' % ('é\\n', 'x')
"%s, %s!" | format('Hi', 'you')
"%(a)s" | format(a=1)
'x' is defined
missing is defined
missing is not defined
missing is undefined
nil is none
nil is not none
n is number
f is number
yes is number
n is integer
yes is integer
f is integer
f is float
yes is boolean
n is boolean
text is string
items is string
items is sequence
text is sequence
tool is sequence
n is sequence
tool is mapping
items is mapping
items is iterable
text is iterable
n is iterable
missing is iterable
(items | map('abs')) is iterable
(items | map('abs')) is sequence
range is callable
n is callable
n is odd
n is even
n is divisibleby 7
n is divisibleby(2)
n is eq 7
n is equalto(7)
n is ne 7
n is gt 5
n is ge(7)
n is lt 5
n is le 7
n is in [1, 7]
n is not in [1, 7]
'abc' is lower
'ABC' is upper
'' is lower
yes is true
yes is false
1 is true
nil is sameas none
yes is sameas true
'upper' is filter
'nope' is filter
'defined' is test
n is defined and n is odd
n is odd or missing.x.y
n is odd if yes else 1
not n is odd
n is string == false
'a' is nope
1 is is 1
items | length
tool | length
5 | length
items | sort
items | sort(reverse=true)
names | sort
names | sort(case_sensitive=true)
people | sort(attribute='age') | map(attribute='name') | list
people | sort(attribute='age,name') | map(attribute='name') | list
people | sort(attribute='home.city', reverse=true) | map(attribute='name') | join(',')
[1, 'a'] | sort
tool | dictsort | map('first') | list
{'b': 1, 'A': 3, 'a': 2} | dictsort
{'b': 1, 'A': 3} | dictsort(true)
{'b': 1, 'A': 3} | dictsort(by='value')
{'b': 1, 'A': 3} | dictsort(false, 'value', true)
items | max
items | min
names | max
[] | max
[] | max is defined
people | max(attribute='age')
items | sum
people | sum(attribute='age')
[1.5, 2] | sum
['a'] | sum
items | sum(start=10)
items | join
items | join(', ')
people | join(', ', attribute='name')
[1, none, 'x', true] | join('-')
'abc' | join('.')
5 | join(',')
items | first
items | last
[] | first
[] | last is defined
'abc' | first
'abc' | last
tool | first
(items | map('string')) | first
(items | map('string')) | last
items | reverse | list
'abc' | reverse
items | list
'abc' | list
tool | list
5 | list
tool | items | list | length
missing | items | list
items | map('string') | list
items | map('abs') | map('string') | join('+')
names | map('upper') | list
names | map('replace', 'n', 'N') | list
people | map(attribute='home.city') | list
people | map(attribute='x', default='d') | list
people | map(attribute='x') | list
people | map('nope') | list
people | map() | list
deep | map(attribute=0) | list
deep | map(attribute='0') | list
items | select('odd') | list
items | select('gt', 1) | list
items | reject('odd') | list
[0, 1, '', none, 'x'] | select | list
[0, 1, '', none, 'x'] | reject | list
people | selectattr('age', 'eq', 30) | map(attribute='name') | list
people | selectattr('age', '>', 26) | list | length
people | selectattr('missing') | list
people | selectattr('missing', 'undefined') | list | length
people | rejectattr('age', 'equalto', 30) | map(attribute='name') | list
people | selectattr('home.city', 'in', ['Bern']) | list | length
people | selectattr('name', 'defined') | list | length
people | selectattr() | list
people | selectattr('name', 'nope') | list
(people | selectattr('nope')) and 'generators are true'
[1, 1.0, 'a', 'A', true] | unique | list
['a', 'A'] | unique(case_sensitive=true) | list
people | unique(attribute='age') | map(attribute='name') | list
people | groupby('age') | map(attribute=0) | list
(people | groupby('age'))[0][1] | map(attribute='name') | list
items | batch(2) | list
items | batch(2, 'x') | list
items | slice(2) | list
items | slice(2, 'x') | list
'5' | int
'5.7' | int
'x' | int
'x' | int(9)
'0x1f' | int(base=16)
'ff' | int(0, 16)
' 42 ' | int
'1_000' | int
-5.9 | int
nil | int
true | int
'2.5' | float
'x' | float
'1e3' | float
'inf' | float
3 | float
'x' | float(1.5)
2.5 | round
3.5 | round
-2.5 | round
2.567 | round(2)
2.5 | round(0, 'ceil')
2.567 | round(1, 'floor')
1234 | round(-2)
5 | round
2.675 | round(2)
'x' | round
-5 | abs
-5.5 | abs
'x' | abs
lines | indent
lines | indent(2)
lines | indent(2, true)
lines | indent(2, first=true, blank=true)
lines | indent('> ')
'' | indent(first=true)
5 | indent
'a long sentence to cut' | truncate(10)
'a long sentence to cut' | truncate(10, true)
'a long sentence to cut' | truncate(10, true, '…')
'short' | truncate(3, leeway=5)
'short one' | truncate(5, leeway=0)
'x' | truncate(1)
'a b  c_d é' | wordcount
'a b/c?d=é&' | urlencode
'<a href="x">\\'&' | e
'<b>' | escape
'<b>' | safe
('<b>' | safe) + '<i>&"'
'<i>' + ('<b>' | safe) + '<u>'
('<b>' | e) + '<i>'
('<b>' | safe) ~ '<i>'
('<b>' | safe) is escaped
'<b>' is escaped
('<b>' | safe | e) + ''
5 | string
none | string
missing | string
text | tojson
tool | tojson
tool | tojson(indent=2)
tool | tojson(indent=0)
tool | tojson(2)
tool | tojson(indent='\\t')
tool | tojson(sort_keys=true)
tool | tojson(separators=(',', ':'))
tool | tojson(separators=(',', ':'), indent=1)
unicode | tojson
unicode | tojson(ensure_ascii=true)
'\\x00\\x1f\\x7f\\u2028"\\\\/' | tojson
[] | tojson(indent=2)
{} | tojson(indent=2)
[[], {}] | tojson(indent=2)
{'a': (1, 2), 1: none, none: 2.0, true: false, 1.5: 'x'} | tojson
{(1, 2): 3} | tojson
missing | tojson
range(3) | tojson
(items | map('abs')) | tojson
nil | tojson
floats | tojson(indent=2)
tool.keys() | tojson
namespace(a=1).a
namespace({'a': 1}).a
namespace(a=1).b is defined
namespace(_a=1)
namespace(a=1)
namespace() is defined
'abc' | attr('upper') is callable
tool | attr('name') is defined
raise_exception('no ' ~ n)
raise_exception()
loop is defined
strftime_now('%Y-%m-%d %H:%M')
strftime_now('%d %B %Y, %A %j')
strftime_now('')
n | nope
(n | nope) if false else 'soft'
yes | nope if yes else 1
n is nope
range(*[1, 4]) | list
dict(**{'a': 1})
'{}{}'.format(*'ab')
range(*5)
dict(**5)
[1, 2,]
(1, 2,)
{'a': 1,}
[,]
{'a'}
{'a': }
(
)
a b
1 2
x.
x.1.2
x[
'unclosed
n |
n | upper(
n is
not
* 2
n if
n == == 1
n = 1
{{ n }}
n; n
n @ 1
n ! 1
é
'é'é
true.x
'x'.y.z
none()
5()
'abc'()
n.x
[1, [2, (3, {'k': "v"})]] | string
[[]] | string
{'k': {}} | string
""".strip("\n")

STATEMENTS = [
    "",
    "plain",
    "\n",
    "\n\n",
    "a\n",
    "a\r\nb\rc\r\n",
    "{{ 1 }}\n",
    "{{ 1 }}\n\n",
    "{% if true %}\n{% endif %}\n",
    "  {% if true %}  x  {% endif %}  ",
    "  {%- if true -%}  x  {%- endif -%}  ",
    "  {%+ if true %}  x\n  {%+ endif +%}\ny",
    "a {{- 1 -}} b",
    "a {{+ 1 }} b",
    "a\n  {{ 1 }}\n  b",
    "a\n  {# c #}\n  b",
    "a\n  {#- c -#}\n  b",
    "a\n  {#+ c +#}\n  b",
    "a{# c #} {# d #}\nb",
    "{# unclosed",
    "{#-#}x{##}y{#+#}",
    "{% raw %}{{ x }}{% endraw %}",
    "{%- raw %} {{ x }} {% endraw -%} y",
    "{% raw %}\n x {%- endraw %}\ny",
    "{% raw %}{% if %}{% raw %}{% endraw %}",
    "{% raw %}x",
    "  {% raw %}  x  {% endraw %}  y",
    "{{ '}}' }}{{ '%}' }}",
    "{{ {'a': {'b': 1}} }}",
    "{{ {'a': {'b': 1}}}}",
    "{{ 'a\nb' }}",
    "{{ 1",
    "{{ }}",
    "{% %}",
    "{%",
    "{{",
    "{",
    "}} %} #}",
    "{%if true%}x{%endif%}",
    "{%-if true-%} x {%-endif-%}",
    "{% if %}{% endif %}",
    "{% if true %}",
    "{% endif %}",
    "{% else %}",
    "{% if true %}{% endfor %}",
    "{% for x in y %}",
    "{% nope %}",
    "{% if 1 %}a{% elif 2 %}b{% else %}c{% endif %}",
    "{% if 0 %}a{% elif 2 %}b{% else %}c{% endif %}",
    "{% if 0 %}a{% elif 0 %}b{% else %}c{% endif %}",
    "{% if missing %}a{% endif %}b",
    "{% if missing.x %}a{% endif %}",
    "{% if 1, 2 %}a{% endif %}",
    "{% if n == 7: %}a{% endif %}",
    "{% for i in items %}{{ i }}{% endfor %}",
    "{% for i in items: %}{{ i }}{% endfor %}",
    "{% for i in 1, 2 %}{{ i }}{% endfor %}",
    "{% for i in missing %}{{ i }}{% else %}none{% endfor %}",
    "{% for i in nil %}{{ i }}{% endfor %}",
    "{% for i in 5 %}{{ i }}{% endfor %}",
    "{% for c in 'añb' %}[{{ c }}]{% endfor %}",
    "{% for k in tool %}{{ k }} {% endfor %}",
    "{% for k, v in tool.items() %}{{ k }} {% endfor %}",
    "{% for k, v in tool %}{{ k }}{% endfor %}",
    "{% for a, b in [(1, 2), [3, 4], 'xy'] %}{{ a }}{{ b }} {% endfor %}",
    "{% for a, b in [(1,)] %}{{ a }}{% endfor %}",
    "{% for a, b in [(1, 2, 3)] %}{{ a }}{% endfor %}",
    "{% for (a, b), c in [((1, 2), 3)] %}{{ a }}{{ b }}{{ c }}{% endfor %}",
    "{% for i in items %}{{ loop.index }}{{ loop.index0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }} {% endfor %}",
    "{% for i in items if i > 1 %}{{ loop.index }}/{{ loop.length }}{% endfor %}",
    "{% for i in items if i > 1 and loop %}{{ i }}{% endfor %}",
    "{% for i in items if i > 9 %}{{ i }}{% else %}none{% endfor %}",
    "{% set ns = namespace(stop=false) %}{% for i in items if not ns.stop %}{{ i }}{% set ns.stop = i == 1 %}{% endfor %}",
    "{% set ns = namespace(s=0) %}{% for i in items if not ns.s %}{{ i }}{{ loop.length }}{% set ns.s = i == 1 %}{% endfor %}",
    "{% set ns = namespace(s=0) %}{% for i in items if not ns.s %}{{ i }}{{ loop.last }}{% set ns.s = i == 1 %}{% endfor %}",
    "{% for i in items %}{{ loop.previtem is defined }}{{ loop.nextitem | default('-') }} {% endfor %}",
    "{% for i in items %}{{ loop.previtem.x }}{% endfor %}",
    "{% for i in items %}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.depth }}{{ loop.depth0 }}{% endfor %}",
    "{% for i in items %}{{ loop.cycle('a', 'b') }}{% endfor %}",
    "{% for i in items %}{{ loop.cycle() }}{% endfor %}",
    "{% for i in [1, 1, 2] %}{{ loop.changed(i) }}{% endfor %}",
    "{% for i in items %}{{ loop.nope is defined }}{% endfor %}",
    "{% for i in items %}{{ loop }}{% endfor %}",
    "{% for i in items %}{% for j in items %}{{ loop.index }}{% endfor %}{{ loop.index }} {% endfor %}",
    "{% for i in items %}{% set outer = loop %}{% for j in [1] %}{{ outer.index }}{{ loop.index }} {% endfor %}{% endfor %}",
    "{% for i in items recursive %}{{ i }}{% if i > 2 %}{{ loop([1]) }}{% endif %}{% endfor %}",
    "{% for i in items %}{{ loop([1]) }}{% endfor %}",
    "{% for i in (items | map('abs')) %}{{ i }}{{ loop.last }}{{ loop.length }}{% endfor %}",
    "{% set g = items | map('abs') %}{{ g | list }}{{ g | list }}",
    "{% set g = items | map('abs') %}{{ g | first }}{{ g | list }}",
    "{% for i in items %}{% if i == 1 %}{% break %}{% endif %}{{ i }}{% endfor %}",
    "{% for i in items %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% endfor %}",
    "{% for i in items %}{% break %}{% else %}none{% endfor %}",
    "{% break %}",
    "{% for i in items %}{% continue %}{% else %}none{% endfor %}",
    "{% for i in items %}{% if loop.first %}{% continue %}{% endif %}{{ i }}{% else %}none{% endfor %}",
    "{% for i in items %}{% for j in items %}{% break %}{% endfor %}{{ i }}{% endfor %}",
    "{% for i in items %}{{ i }}{% endfor %}{{ i }}",
    "{% for i in items %}{{ i }}{% endfor %}{{ loop }}",
    "{% set n = 1 %}{% for i in items %}{{ n }}{% set n = n + 1 %}{{ n }} {% endfor %}{{ n }}",
    "{% for i in items %}{{ x is defined }}{% set x = i %}{{ x }} {% endfor %}{{ x is defined }}",
    "{% if yes %}{% set x = 1 %}{% endif %}{{ x }}",
    "{% for i in [1] %}{% if yes %}{% set n = 0 %}{% endif %}{{ n }}{% endfor %}{{ n }}",
    "{% set x = 1 %}{{ x }}{% set x = 2 %}{{ x }}",
    "{% set x = 1, 2 %}{{ x }}",
    "{% set x, y = 1, 2 %}{{ x }}{{ y }}",
    "{% set x, y = [1] %}",
    "{% set (x, y) = 'ab' %}{{ x }}{{ y }}",
    "{% set x.y = 1 %}",
    "{% set text.y = 1 %}",
    "{% set none = 1 %}",
    "{% set 1 = 1 %}",
    "{% set x %}",
    "{% set x =  %}",
    "{% set x %}a{{ n }}{% endset %}{{ x }}",
    "{% set x | upper %}a{{ n }}{% endset %}{{ x }}",
    "{% set x | replace('a', 'b') | upper %}a{% endset %}{{ x }}",
    "{% set x %}{% set y = 1 %}{% endset %}{{ y is defined }}",
    "{% set ns = namespace(x=1) %}{% set ns.x = 2 %}{% set ns.y = 3 %}{{ ns.x }}{{ ns.y }}",
    "{% set ns = namespace(x=1) %}{% for i in items %}{% set ns.x = ns.x + i %}{% endfor %}{{ ns.x }}",
    "{% set ns = namespace(x=1) %}{% set ns._x = 2 %}",
    "{% set ns = namespace(x=1) %}{% set ns.x %}block{% endset %}{{ ns.x }}",
    "{% set ns = namespace(a=1, b=2) %}{% set ns.a, ns.b = ns.b, ns.a %}{{ ns.a }}{{ ns.b }}",
    "{% set ns = namespace(items=items) %}{{ ns.items }}",
    "{% set ns = namespace() %}{% set ns.self = ns %}{{ ns.self.self is defined }}",
    "{% macro m(a, b=2, c=b) %}{{ a }}{{ b }}{{ c }}{% endmacro %}{{ m(1) }} {{ m(1, 3) }} {{ m(c=1, a=2) }} {{ m() }}",
    "{% macro m(a) %}{{ a is defined }}{% endmacro %}{{ m() }}",
    "{% macro m(a) %}{{ a.x }}{% endmacro %}{{ m() }}",
    "{% macro m(a) %}{% endmacro %}{{ m(1, 2) }}",
    "{% macro m(a) %}{% endmacro %}{{ m(b=2) }}",
    "{% macro m(a) %}{% endmacro %}{{ m(1, a=2) }}",
    "{% macro m() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 2, x=3) }}",
    "{% macro m() %}  x  {% endmacro %}[{{ m() | trim }}]",
    "{% macro m() %}{{ later }}{% endmacro %}{% set later = 5 %}{{ m() }}",
    "{% macro m() %}{{ i }}{% endmacro %}{% for i in items %}{{ m() }}{% endfor %}",
    "{% macro m() %}{% set n = 1 %}{{ n }}{% endmacro %}{{ m() }}{{ n }}",
    "{% macro fact(k) %}{% if k > 1 %}{{ k * (fact(k - 1) | int) }}{% else %}1{% endif %}{% endmacro %}{{ fact(10) }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% macro m() %}{{ caller() }}{% endmacro %}{% call m() %}x{% endcall %}",
    "{% macro m() %}{{ caller(1, b=2) }}{% endmacro %}{% call(a, b=5) m() %}{{ a }}{{ b }}{{ n }}{% endcall %}",
    "{% macro m() %}x{% endmacro %}{% call m() %}y{% endcall %}",
    "{% macro m() %}{{ caller is defined }}{% endmacro %}{{ m() }}",
    "{% macro m() %}{{ caller() }}{% endmacro %}{{ m() }}",
    "{% macro m(x) %}[{{ x }}]{% endmacro %}{{ items | map('string') | join }}{{ m }}",
    "{% macro m(a=1, b) %}{% endmacro %}",
    "{% macro %}{% endmacro %}",
    "{% call n %}{% endcall %}",
    "{% for i in [1] %}{% macro m() %}{{ i }}{% endmacro %}{{ m() }}{% endfor %}{{ m is defined }}",
    "{% with %}x{% endwith %}",
    "{% with a = 1, b = 2 %}{{ a }}{{ b }}{% endwith %}{{ a is defined }}",
    "{% with n = n + 1, m = n %}{{ n }}{{ m }}{% endwith %}{{ n }}",
    "{% filter upper %}a{{ n }}b{% endfilter %}",
    "{% filter trim | upper %}  a  {% endfilter %}!",
    "{% filter nope %}x{% endfilter %}",
    "{% generation %}x{% set n = 1 %}{{ n }}{% endgeneration %}{{ n }}",
    "{%- generation -%}  x  {%- endgeneration -%}  y",
    "{% for i in items %}{% generation %}{{ loop.index }}{% endgeneration %}{% endfor %}",
    "{% print n, f %}",
    "{{ 1, 2 }}",
    "{{ n }}{{ n }}",
    "{% include 'x' %}",
    "{% extends 'x' %}",
    "{% import 'x' as y %}",
    "{% if false %}{{ n | nope }}{% endif %}ok",
    "{% if false %}{{ n is nope }}{% endif %}ok",
    "{% if true %}{{ n | nope }}{% endif %}",
    "{{ n | nope }}",
    "{% for i in items %}{{ i -}}\n{% endfor %}",
    "{% for i in items -%}\n  {{ i }}\n{%- endfor %}",
    "x\n\n{%- if true %}\n\ny{% endif %}\n\n\nz\n",
    "\t{% if true %}\ta{% endif %}\n \t {% if true %}b{% endif %}\n",
    "\u00a0\u2003{% if true %}a{% endif %}\u3000{%- if true %}b{% endif %}",
    "a\n\u00a0 {% if true %}b{% endif %}",
    "{{ 'é' }}é{{ '\u200b' }}",
]

SNIPPETS = ["{{ " + line.replace("\\\\", "\\") + " }}" for line in EXPRESSIONS.replace("\\\nnext", "@next").split("\n")]
SNIPPETS = [snippet.replace("@next", "\\\nnext") for snippet in SNIPPETS] + STATEMENTS

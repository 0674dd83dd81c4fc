//! Closed sets: an enum that lists its variants in `ALL` lists every one. Tables, metrics and
//! documents are made from that list, so a variant that it lacks would be missing from all of them
//! without a word.

use std::collections::{BTreeMap, BTreeSet};

use super::{is_test, sources};

/// The variants of each enum of a file, and those that its `ALL` lists.
fn sets(text: &str) -> Vec<(String, BTreeSet<String>, BTreeSet<String>)> {
    let file = syn::parse_file(text).expect("Rust");
    let mut variants = BTreeMap::new();
    for item in &file.items {
        if let syn::Item::Enum(set) = item {
            let names: BTreeSet<_> = set.variants.iter().map(|v| v.ident.to_string()).collect();
            variants.insert(set.ident.to_string(), names);
        }
    }

    let mut found = Vec::new();
    for item in &file.items {
        let syn::Item::Impl(block) = item else { continue };
        let syn::Type::Path(path) = &*block.self_ty else { continue };
        let name = path.path.segments.last().expect("a name").ident.to_string();
        let Some(all) = variants.get(&name) else { continue };

        for member in &block.items {
            let syn::ImplItem::Const(list) = member else { continue };
            let syn::Expr::Array(array) = &list.expr else { continue };
            if list.ident == "ALL" {
                let listed = array.elems.iter().filter_map(|element| {
                    let syn::Expr::Path(path) = element else { return None };
                    path.path.segments.last()
                });
                let listed = listed.map(|segment| segment.ident.to_string()).collect();
                found.push((name.clone(), all.clone(), listed));
            }
        }
    }
    found
}

#[test]
fn closed_sets_list_all_of_their_variants() {
    let mut wrong = Vec::new();
    let mut count = 0;
    for (path, text) in sources("src").into_iter().filter(|(path, _)| !is_test(path)) {
        for (name, variants, listed) in sets(&text) {
            count += 1;
            let missing: Vec<_> = variants.difference(&listed).collect();
            if !missing.is_empty() {
                wrong.push(format!("{}: {name}::ALL lacks {missing:?}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count >= 5, "{count} sets: the rule sees nothing");

    // The rule sees a variant that is not listed.
    let text = "enum E { A, B }\nimpl E { const ALL: [Self; 1] = [Self::A]; }\n";
    let (_, variants, listed) = &sets(text)[0];
    assert_eq!(variants.difference(listed).collect::<Vec<_>>(), ["B"]);
}
